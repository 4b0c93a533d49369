"""Numbers that come with their uncertainty: the per-sample table, attack and image metrics, and the statistics behind them."""
