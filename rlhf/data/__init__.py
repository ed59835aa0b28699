"""From files to batches: sources, formats, records, hold-out, chat templates, gates, tokens, mixture, collation.

Everything but `collate` works without torch, so that a broken file or row is reported before torch is loaded.
"""
