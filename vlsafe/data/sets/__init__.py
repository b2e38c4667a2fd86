"""Public data sets and users' own files as training rows: group `dataset`, one file each."""
