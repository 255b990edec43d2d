"""robosuite's manipulation tasks, with robomimic's data sets."""
