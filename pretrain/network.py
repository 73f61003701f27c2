"""How the nodes of a run reach each other. Looked at before torch is imported: that fails after minutes, in C++.

    check_address("node1")              the name is known here
    check_between_nodes(environment, is_first=...)    the first node is within reach, and others can find this one
    wait_for_first_rank(environment)                  somebody answers where the ranks meet

Standard library and psutil only.
"""

import ipaddress
import socket
import time
from collections.abc import Mapping, MutableMapping

import psutil

from data_prep.cli import InputError, number_in, say, say_once

ADDRESS_SECONDS = 30.0  # in which the first node's name must become known, and the node be within reach
FIRST_RANK_SECONDS = 120  # in which rank 0 must listen: ranks start apart; ZEROBERT_MEET_SECONDS says otherwise
CONNECT_SECONDS = 5.0  # that one attempt to reach it may take
DEFAULT_PORT = 29500  # DeepSpeed's and torchrun's
VIRTUAL = ("docker", "virbr", "veth", "br-")  # how interfaces begin that lead to containers of this machine


def check_address(address: str) -> None:
    """Refuse the name of a host that nobody knows; torch would ask for ten minutes and end in frames of C++.

    A cluster may make the names of its machines known while they start, so a name has ADDRESS_SECONDS.

    Raises
    ------
    InputError: naming the variable.
    """
    deadline = time.monotonic() + ADDRESS_SECONDS
    while True:
        try:
            if address:
                socket.getaddrinfo(address, None)
                return
            why = "it is empty"
        except OSError as error:
            why = error.strerror or str(error)
        except UnicodeError:  # too long for a name, or dots in a row
            why = "it cannot be a name"
        if time.monotonic() >= deadline:
            raise InputError(
                f"MASTER_ADDR={address!r} is no host that this machine knows ({why}); give the name or the address of "
                "the first node, as --master_addr or in this variable"
            )
        waiting = f"MASTER_ADDR={address!r} is not known ({why}); asking for {ADDRESS_SECONDS:.0f} seconds"
        say_once(waiting, about=waiting)
        time.sleep(1.0)


def check_between_nodes(environment: MutableMapping[str, str], *, is_first: bool) -> None:
    """Of ranks on several nodes: see that the first node is within reach, and that gloo announces this one by an
    address at which others find it. Where it would not, GLOO_SOCKET_IFNAME is set.

    is_first: whether this rank is the first of its node; one a node is enough to look for the first node

    Raises
    ------
    InputError: naming what is wrong with the network.
    """
    address, rank = environment["MASTER_ADDR"], environment["RANK"]
    if is_first and rank != "0":
        if is_loopback(address):
            raise InputError(
                f"MASTER_ADDR={address!r} is {socket.gethostname()} itself, where rank {rank} is and rank 0 not; "
                "give the first node by a name or an address that all nodes know: --master_addr"
            )
        check_within_reach(address, number_in(environment, "MASTER_PORT", DEFAULT_PORT, most=0xFFFF))
    if "GLOO_SOCKET_IFNAME" in environment:
        check_interfaces(environment["GLOO_SOCKET_IFNAME"])
    elif interface := interface_instead_of_loopback(address):
        environment["GLOO_SOCKET_IFNAME"] = interface
        if rank == "0":
            host = socket.gethostname()
            say(f"the name {host} leads to {resolved(host) or 'nowhere'}: the ranks find each other by {interface}")


def check_interfaces(names: str) -> None:
    """Refuse a GLOO_SOCKET_IFNAME that this machine does not have."""
    known = psutil.net_if_addrs()
    if unknown := [name for name in names.split(",") if name not in known]:
        raise InputError(
            f"GLOO_SOCKET_IFNAME={names!r}: {socket.gethostname()} has no interface {unknown[0]!r}; it has "
            f"{', '.join(sorted(known))}"
        )


def interface_instead_of_loopback(towards: str) -> str:
    """Return the interface by which gloo must announce this machine, whose own name leads to itself only (Debian writes
    `127.0.1.1 NAME` into /etc/hosts); empty: its name is good.

    Raises
    ------
    InputError: which one cannot be told.
    """
    host = socket.gethostname()
    if resolved(host) and not is_loopback(host):
        return ""
    mine, interfaces = own_address(towards), outward_interfaces()
    found = next((name for name, addresses in interfaces.items() if mine in addresses), "")
    if not found:
        raise InputError(
            f"the name {host} leads to {resolved(host) or 'nowhere'}, where no other node finds it, and which of its "
            f"interfaces others see cannot be told ({', '.join(interfaces) or 'there is none'}); set "
            "GLOO_SOCKET_IFNAME=NAME, or mend /etc/hosts"
        )
    return found


def check_within_reach(address: str, port: int) -> None:
    """Refuse a first node that does not answer at all: a firewall, or another network. That nobody listens at the port
    yet is an answer.

    Raises
    ------
    InputError: naming both sides.
    """
    deadline = time.monotonic() + ADDRESS_SECONDS
    while True:
        try:
            with socket.create_connection((address, port or DEFAULT_PORT), timeout=CONNECT_SECONDS):
                return
        except ConnectionError:
            return
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise InputError(
                f"MASTER_ADDR={address}, MASTER_PORT={port}: {socket.gethostname()} does not reach it ({why}); open "
                "this port, and those above 1023 between the nodes, in the firewall, or name another address or port: "
                "--master_addr, --master_port"
            )
        time.sleep(1.0)


def wait_for_first_rank(environment: Mapping[str, str]) -> None:
    """Wait until somebody answers at the address where the ranks meet; torch would ask for ten minutes.

    Raises
    ------
    InputError: nobody does, in FIRST_RANK_SECONDS or as many as ZEROBERT_MEET_SECONDS says.
    """
    address, port = environment["MASTER_ADDR"], number_in(environment, "MASTER_PORT", DEFAULT_PORT, most=0xFFFF)
    patience = number_in(environment, "ZEROBERT_MEET_SECONDS", FIRST_RANK_SECONDS, most=10**6)
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_SECONDS):
                return
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise InputError(
                f"MASTER_ADDR={address}, MASTER_PORT={port}: nobody has answered there for {patience} seconds ({why}): "
                "rank 0 did not start, or listens elsewhere. See what its node says, name its address and port "
                "(--master_addr, --master_port), or wait for longer: ZEROBERT_MEET_SECONDS=600"
            )
        time.sleep(0.2)


def own_address(towards: str = "") -> str:
    """Return the address of this machine at which others reach it: on the way `towards` a host, on the way out, or the
    first that it has; 127.0.0.1 where it has none."""
    for target in filter(None, (towards, "192.0.2.1")):  # the latter is nobody's, so the way out leads there
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))  # sends nothing
            except OSError:
                continue
            if not ipaddress.ip_address(mine := probe.getsockname()[0]).is_loopback:
                return mine
    return next((address for addresses in outward_interfaces().values() for address in addresses), "127.0.0.1")


def outward_interfaces() -> dict[str, list[str]]:
    """Return the IPv4 addresses of each interface that is up and leads out of this machine."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    addresses = {
        name: [each.address for each in found if each.family == socket.AF_INET]
        for name, found in psutil.net_if_addrs().items()
        if name in up and not name.startswith(VIRTUAL)
    }
    return {
        name: outward
        for name, found in addresses.items()
        if (outward := [address for address in found if not ipaddress.ip_address(address).is_loopback])
    }


def resolved(host: str) -> str:
    """Return the first address that a name leads to; empty: none."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except (OSError, UnicodeError):
        return ""


def is_loopback(host: str) -> bool:
    """Return whether a name or an address leads to this machine alone."""
    address = resolved(host).partition("%")[0]
    return bool(address) and ipaddress.ip_address(address).is_loopback
