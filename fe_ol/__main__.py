"""``python -m fe_ol``: see `fe_ol.cli`."""

from fe_ol.cli import main

if __name__ == "__main__":
    main()
