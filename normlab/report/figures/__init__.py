"""The charts of the report: Vega-Lite specifications by Altair, each with its words and its data table."""
