"""Pictures inside a tar archive, or a tar of tars: listed once, then read by their offset."""

import dataclasses
import pathlib

from nest_dist.data import batch
from nest_dist.data.sources import byte_ranges, image_folder, tar_archive


@dataclasses.dataclass(frozen=True, eq=False)
class Members(batch.Source):
    """Pictures of an archive as a source, each with its label or its set of classes."""

    path: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[tar_archive.Member, int | batch.ClassSet], ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> batch.Example:
        member, label = self.entries[index]
        with open(self.path, "rb") as file:
            file.seek(member.offset)
            return batch.labelled(file.read(member.size), label, member.name)


def listed(
    path: pathlib.Path,
) -> tuple[list[tar_archive.Member], list[image_folder.PassedOver]]:
    """The pictures of an archive in its order, and its other members."""
    members: list[tar_archive.Member] = []
    passed_over: list[image_folder.PassedOver] = []
    reader = tar_archive.Reader(byte_ranges.File(str(path)))
    for member, refusal in tar_archive.members(reader):
        if refusal := refusal or image_folder.why_passed_over(member.name):
            passed_over.append(image_folder.PassedOver(member.name, refusal))
        else:
            members.append(member)
    return members, passed_over
