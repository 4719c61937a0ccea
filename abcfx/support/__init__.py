"""Tools that several rooms need and none of them owns: places in code, patterns, options, verdicts, running a model."""
