"""Models as people write them and short programs that train them, installed as `abcfx.examples`: docs/examples.md."""
