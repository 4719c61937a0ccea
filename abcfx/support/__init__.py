"""What several rooms need and no one owns: places in code, patterns, options, verdicts, text, running a model."""
