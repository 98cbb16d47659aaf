"""Operations: where an engine meets a store."""
