"""The pages of the studio, in the order of its menu. A new page is a file, a catalogue in each language, and a row."""

from __future__ import annotations

from klype.studio import answer, divergence, paths, ranking, runs, targets
from klype.studio.visit import Page

PAGES = (
    Page("answer", "/", "forum", answer.build),
    Page("paths", "/paths", "account_tree", paths.build),
    Page("divergence", "/divergence", "timeline", divergence.build),
    Page("targets", "/targets", "ads_click", targets.build),
    Page("ranking", "/ranking", "format_list_numbered", ranking.build),
    Page("runs", "/runs", "show_chart", runs.build),
)
