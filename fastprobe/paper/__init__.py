"""The analyses of Zhao et al. (2021) asked of one model, and the page that says what was found."""

from fastprobe.paper.mirror import paper as paper
