"""Data: files of rows -> examples -> packed batches (numpy only, never torch)."""
