"""What tasks and studies share: texts with gaps, what fills them, losses, judgements, figures."""
