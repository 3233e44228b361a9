"""Trains and evaluates: python main.py --config=configs/small.py"""

import sys

if __name__ == "__main__":
    from mbv3_jax.core.signals import hold_stop_signals

    hold_stop_signals()
    from mbv3_jax.cli import quieten_xla, use_huge_pages

    quieten_xla()
    use_huge_pages()
    from mbv3_jax.cli.compiled import keep_programs

    keep_programs()
    from mbv3_jax.cli.train import main

    sys.exit(main(sys.argv[1:]))
