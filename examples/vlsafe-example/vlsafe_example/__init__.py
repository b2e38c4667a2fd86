"""The module that the entry point names: importing it registers every component of the package."""

from vlsafe_example import breadcrumbs, overlap, pruned, text_sft, wrapped_borderline

__all__ = ["breadcrumbs", "overlap", "pruned", "text_sft", "wrapped_borderline"]
