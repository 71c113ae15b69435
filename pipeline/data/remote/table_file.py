"""A table that lies at an address itself: fetched into the cache, and asked for changes at each start."""

from pathlib import Path

from pipeline.data.remote.addresses import check_source, pictures_folder, places_of
from pipeline.data.remote.fetch import NEVER, fetch_pictures
from pipeline.system.errors import UserError


def fetch_table(address: str, option: str = "data.source") -> Path:
    """The table at `address`, in the cache; as it was fetched before if its server is away. UserError if there is none,
    or if the address holds a password, which the run's page would show."""
    check_source(address, option)
    folder, (name,) = places_of([address])
    place = pictures_folder() / folder / name
    missing = fetch_pictures(place.parent, {place.name: address}, NEVER, recheck_hours=0.0, noun="table")
    if missing:
        raise UserError(f"{option} is {address}, which {missing[place.name]}; mend the address.")
    return place
