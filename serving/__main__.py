"""`python -m serving`: the commands of `graduate serving` without the other packages."""

from serving.cli import app

app(prog_name="python -m serving", auto_envvar_prefix="GRADUATE_SERVING")
