"""Pure numerics: who sends which range when, and how ranges are reduced."""
