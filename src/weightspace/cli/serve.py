"""The command `weightspace serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.words import console

__all__ = ["serve"]


def serve(
    atlas: Annotated[
        str | None, typer.Argument(help="The atlas to show: a folder, or postgresql://user@host/database.")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data that the networks may be asked with, as in other commands; may be given again."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="The folder of report pages; if not given, reports in the atlas, or here.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="The architecture of networks whose own is not known, as in other commands.")
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="Where copies of networks are kept, for an atlas in a database.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on. Any other than this machine's own lets others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port; if not given, 8421 or one that is free.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Another name under which the server is reached; may be given again.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="How many jobs run at the same time.")] = 1,
    memory: Annotated[float, typer.Option(min=0.1, help="Gigabytes of memory that each job may take.")] = 8.0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Show an atlas, reports and a playground of small networks in the browser, from this machine alone."""
    from weightspace.net.errors import WeightspaceError

    try:
        from weightspace.web import server
        from weightspace.web.served import Served, reports_of
    except ImportError as error:
        raise WeightspaceError(f"{error.name} is not installed; pip install 'weightspace[web]'") from error
    folder = reports_of(atlas, reports)
    served = Served(folder, atlas, objects, tuple(data or ()), arch, jobs, int(memory * 1e9))
    served.check()
    at = server.listen(host, port, tuple(name or ()))
    out = console()

    def ready() -> None:
        if not at.local:
            out.print("Others can reach this server; whoever has the address below can use it.", style="yellow")
        out.print("weightspace is at", style="bold")
        print(at.page, flush=True)
        out.print("Stop it with Ctrl-C.")

    server.serve(served, at, ready, browser)
