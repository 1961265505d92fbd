"""``python -m klype`` is ``klype``."""

from klype.cli.main import main

if __name__ == "__main__":
    main()
