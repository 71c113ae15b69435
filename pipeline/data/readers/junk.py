"""Files and folders that systems and programs leave between pictures."""

# In lower case; what begins with a dot is hidden anyway.
LEFT_BEHIND = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information",
    "lost+found", "@eadir", "#recycle", "__pycache__", ".ds_store", ".ipynb_checkpoints", ".trashes", ".spotlight-v100",
}  # fmt: skip


def is_left_out(name: str) -> bool:
    """Whether a listing passes over this file or folder: it is hidden, or no one put it there."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def is_junk(path: str) -> bool:
    """Whether this path, which a table names, is of a file that no one put there; "._1.jpg" is macOS's."""
    return any(part.startswith("._") or part.lower() in LEFT_BEHIND for part in path.split("/"))
