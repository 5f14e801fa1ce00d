"""Cases drawn by hypothesis: whatever a user writes is right, or one line; nothing else, not late, and no file by a name."""
