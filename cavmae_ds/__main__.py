"""`python -m cavmae_ds` is the `cavmae` command."""

from cavmae_ds.cli import main

if __name__ == "__main__":
    main()
