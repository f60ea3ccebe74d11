"""`python -m nest_dist`: the same program as `nest-dist`."""

from nest_dist.commands import cli

if __name__ == "__main__":
    cli.main()
