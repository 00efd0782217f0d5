"""Pictures behind the sliders of each notebook, for `course_utils.widgets.explore()`: `nb03.py` has those of 03."""
