"""Models as people write them, installed as `abcfx.examples`, so that `abcfx demo` has one to work on."""
