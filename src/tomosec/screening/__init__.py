"""Screening: would you notice? Consistency of incoming measured data, against clean scans of the same scanner.

:func:`calibrate` makes a :class:`Profile` from clean scans; ``Profile.screen`` judges a scan by it. No attack is needed, and none
is run. ``tomosec screen`` is the same for files and folders.
"""

from tomosec.defenses.maps import InconsistencyMap
from tomosec.screening.calibration import calibrate
from tomosec.screening.profile import Profile
from tomosec.screening.results import Reading, ScreenResult, Tally, Verdict

__all__ = ["InconsistencyMap", "Profile", "Reading", "ScreenResult", "Tally", "Verdict", "calibrate"]
