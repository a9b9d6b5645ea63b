"""Search for the settings of training: a space, trials on Ray Tune, leaders repeated over seeds, a report."""
