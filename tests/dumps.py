"""Dumps of MediaWiki that fit in a test."""

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo><sitename>Wikipedia</sitename><namespaces>
    <namespace key="-2" case="first-letter">Medium</namespace>
    <namespace key="0" case="first-letter" />
    <namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
"""


def page(number: int, text: str = "Text.", ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    return (
        f"<page><title>Seite {number}</title><ns>{ns}</ns><id>{number}</id>{more}<revision><id>{number + 1000}</id>"
        f"<model>{model}</model><text bytes='5' xml:space='preserve'>{text}</text></revision></page>\n"
    )
