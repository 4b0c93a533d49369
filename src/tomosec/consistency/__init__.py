"""What must hold of the scan of any object, as residuals that vanish up to noise: for those who test it and who evade it."""
