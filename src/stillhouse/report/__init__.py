"""The page a run leaves for people: one self-contained HTML file, and the same story in Markdown.

Reads run folders only and never imports torch. Start at `page.write_report`;
`story` words the headline, `figures` draws.
"""
