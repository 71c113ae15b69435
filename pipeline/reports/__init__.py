"""Everything that is drawn or written for people.

In reading order: figures (what all figures share), pictures (which ones to show, with captions), page (a report as HTML
and Markdown, by templates/), data_figures, lr_finder_figures, training_figures and evaluation_figures (one figure a
function), picture_cards (pictures whose labels can be mended), evaluation_report, run_comparison_report and
heads_report (figures, tables and text together), model_card.
"""
