"""Reports: a timeline as text, as an SVG picture and as a Chrome/Perfetto trace."""
