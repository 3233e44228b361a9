"""The built-in sources, one module each, named like the source; see `mbv3_jax.data.source`."""
