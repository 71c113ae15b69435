"""Several run ids as a user types them."""

from pipeline.errors import UserError


def parse_run_ids(text: str) -> list[str]:
    """The ids in "a,b,c"; UserError unless there are two or more, each once."""
    ids = [one.strip() for one in text.split(",") if one.strip()]
    if len(ids) < 2:
        raise UserError(f"runs is {text!r}, which names {len(ids)} run; give two or more: -P runs=<run id>,<run id>.")
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise UserError(f"runs names {twice} twice; give each run once.")
    return ids
