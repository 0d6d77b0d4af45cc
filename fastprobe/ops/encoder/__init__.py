"""Operations of an encoder layer."""
