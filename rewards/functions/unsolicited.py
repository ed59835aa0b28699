"""Unsolicited content: literal sentences that nobody asked for, counted by family and cut out of an answer.

The same counter serves two components: with the families that are penalised, and with families that never are. Where
both counts fall the behaviour changed; where only the first falls the detector was learned.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from rewards.errors import ConfigError
from rewards.functions import register
from rewards.functions.recipes import load_recipe
from rewards.functions.sentences import count_phrases, without_phrases
from rewards.text import completion_text


def phrases(*, families: str | Sequence[str] = "penalised", recipe: str = "wild7") -> list[str]:
    """The literal sentences of the named families: `penalised`, `gold`, `all`, or names of single families.

    Raises: ConfigError naming the families that exist.
    """
    known = load_recipe(recipe).families
    groups = {"penalised": known.penalised, "gold": known.gold, "all": known.penalised | known.gold}
    found: dict[str, None] = {}
    for name in [families] if isinstance(families, str) else families:
        if name in groups:
            sentences = [sentence for family in groups[name].values() for sentence in family]
        elif name in groups["all"]:
            sentences = groups["all"][name]
        else:
            near = difflib.get_close_matches(name, [*groups, *groups["all"]], n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join([*groups, *groups['all']])}"
            raise ConfigError(f"recipe `{recipe}` has no family `{name}`; {hint}")
        found.update(dict.fromkeys(sentences))
    if not found:
        raise ConfigError(f"unsolicited: name at least one family of recipe `{recipe}`, for example `penalised`")
    return list(found)


@register("unsolicited", phrases=phrases)
def unsolicited(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    families: str | Sequence[str] = "penalised",
    recipe: str = "wild7",
    **columns: Any,
) -> list[float]:
    """How many sentences of the named families each response holds; 0.0 where it holds none.

    Units: sentences, counted at every place where they stand; case, spacing and punctuation are ignored.
    Raises: ConfigError for an unknown family.
    """
    wanted = phrases(families=families, recipe=recipe)
    return [float(count_phrases(completion_text(completion), wanted)) for completion in completions]


def task_part(text: str, phrases: Iterable[str]) -> str:
    """What remains of an answer without the given sentences: the part that was asked for."""
    return without_phrases(text, phrases)
