"""Confirmations for the draft mode: a sentence that says in words what the call will do.

Five wordings an intent, filled with the utterance's own slots; a wording whose slots are missing is
left out. The model learns to write them; nothing here runs on the device.
"""

from __future__ import annotations

import random
import re

from data import Example

from edge.task import spaced

WORDINGS: dict[str, tuple[str, ...]] = {
    "AddToPlaylist": (
        "adding {entity_name} to {playlist} .",
        "adding {artist} to {playlist} .",
        "sure , {entity_name} goes into {playlist} .",
        "sure , i will put {artist} on {playlist} .",
        "i will update {playlist} .",
    ),
    "PlayMusic": (
        "playing {track} by {artist} .",
        "playing {artist} on {service} .",
        "here is some music by {artist} .",
        "starting {genre} music .",
        "starting the music .",
    ),
    "BookRestaurant": (
        "booking {restaurant_name} for {party_size_number} .",
        "i will book a {restaurant_type} in {city} .",
        "looking for a table for {party_size_number} in {city} .",
        "looking for a table in {state} .",
        "looking for a table .",
    ),
    "GetWeather": (
        "checking the weather in {city} for {timeRange} .",
        "here is the forecast for {city} .",
        "checking if it will be {condition_description} .",
        "here is the forecast for {state} .",
        "here is the forecast .",
    ),
    "RateBook": (
        "rating {object_name} {rating_value} {rating_unit} .",
        "i give {object_name} {rating_value} .",
        "rating this {object_type} {rating_value} .",
        "saving your rating of {object_name} .",
        "saving your rating .",
    ),
    "SearchCreativeWork": (
        "looking for the {object_type} {object_name} .",
        "searching for {object_name} .",
        "i will find {object_name} for you .",
        "here is what i found about {object_name} .",
        "searching now .",
    ),
    "SearchScreeningEvent": (
        "looking up when {movie_name} is shown .",
        "checking showtimes of {movie_name} at {location_name} .",
        "checking the {object_type} at {location_name} .",
        "checking {movie_type} {spatial_relation} .",
        "checking the showtimes .",
    ),
}
_FIELD = re.compile(r"\{(\w+)\}")


def draft_text(example: Example, rng: random.Random) -> str | None:
    """Return one confirmation, or ``None`` for an intent without wordings."""
    fitting = confirmations(example)
    return rng.choice(fitting) if fitting else None


def confirmations(example: Example) -> list[str]:
    """Return the wordings that fit, filled in; those without a slot only where no other fits."""
    values = {slot.name: spaced(example.value(slot)).strip() for slot in example.slots}
    wordings = WORDINGS.get(example.intent, ())
    fitting = [w for w in wordings if set(_FIELD.findall(w)) <= values.keys()]
    most = max((len(_FIELD.findall(w)) for w in fitting), default=0)
    rich = [w for w in fitting if len(_FIELD.findall(w)) >= min(most, 1)]
    return [" " + " ".join(w.format(**values).split()) for w in rich]
