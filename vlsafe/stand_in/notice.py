"""How output says that it is of stand-ins."""

PREFIX = "stand_in."  # what the name of a sweep on stand-ins begins with
NOTICE = (
    "STAND-INS: tiny random models and invented rows run in place of those asked for. No figure here says anything of a model."
)


def notice_for(sweep: str) -> str:
    return NOTICE if sweep.startswith(PREFIX) else ""
