"""What the routes share: looking up what an address names."""

from collections.abc import Callable, Mapping

from sae.inspection.records import FeatureRecord
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotFound, NotLoaded
from sae.inspection.server.notes import Notes


class Lookup:
    """Finds sources, features and notes for the routes. Every miss is a failure with its own status."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context

    def source(self, name: str) -> Source:
        """The source of this name. Raises NotFound."""
        return self.context.registry.get(name)

    def feature(self, name: str, latent: int) -> tuple[Source, int]:
        """The source and the latent. Raises NotFound for a latent beyond the dictionary."""
        source = self.source(name)
        self.latents(source, [latent])
        return source, latent

    def latents(self, source: Source, latents: list[int], *, field: str = "index") -> None:
        """Raises NotFound for latents beyond the dictionary."""
        wrong = next((i for i in latents if not 0 <= i < source.index.d_sae), None)
        if wrong is not None:
            shown = str(wrong) if wrong < 10**12 else "a larger one"
            raise NotFound(f"{source.name} has features 0..{source.index.d_sae - 1}, not {shown}", field=field)

    def record(self, name: str, latent: int, *, passages: Mapping[str, int] | None = None) -> tuple[Source, FeatureRecord]:
        """The source and all that is known of the latent; with `passages`, only so many passages of the groups named."""
        source, _ = self.feature(name, latent)
        return source, source.index.record(latent, passages=passages)

    def notes(self) -> Notes:
        """The file of notes. Raises NotLoaded when there is none."""
        if self.context.notes is None:
            raise NotLoaded(
                "nothing can be written: the server was started without a file for notes; start it with --notes FILE",
                extra={"command": "sae serve INDEX --notes FILE"},
            )
        return self.context.notes

    def label(self, source: Source, latent: int) -> str | None:
        """What a feature is called."""
        return self.context.notes.label(source.dictionary, latent) if self.context.notes else None

    def live(self, name: str) -> Source:
        """The source, its language model loaded. Raises NotLoaded with the command that loads it."""
        source = self.source(name)
        if source.live is None:
            raise source.needs_model
        return source

    def dictionary_name(self) -> Callable[[str], str | None]:
        """A function from the digest of a dictionary to the name of the first source that has it."""
        names: dict[str, str] = {}
        for source in self.context.registry:
            names.setdefault(source.dictionary, source.name)
        return names.get
