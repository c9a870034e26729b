import socket

import pytest

from dataset.public_addresses import AddressRefused, is_public, public_socket

# RFC 1918, 6598, 3927 (cloud metadata), 1122, 5737, 2544, 4193, 4291, and what wraps IPv4.
# Site-local; NAT64 within a network; IETF's own; 6to4's relays; documentation; Azure's host.
PRIVATE = """
10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 127.0.0.1 127.255.255.254 0.0.0.0 100.64.0.1
169.254.169.254 192.0.2.1 198.18.0.1 240.0.0.1 255.255.255.255 224.0.0.1 ::1 :: fe80::1
fe80::1%eth0 fc00::1 fd12:3456::1 ff02::1 2001:db8::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
::ffff:a9fe:a9fe ::127.0.0.1 ::ffff:0:127.0.0.1 2002:7f00:1:: 2002:c0a8:101::1 64:ff9b::10.0.0.1
64:ff9b::169.254.169.254 2001:0:4136:e378:8000:63bf:f5ff:fffe fec0::1 64:ff9b:1::808:808
192.0.0.192 192.0.0.8 192.88.99.1 3fff::1 5f00::1 4000::1 168.63.129.16 ::ffff:168.63.129.16
2002:a83f:8110:: 100.100.100.200 fd00:ec2::254
"""
PUBLIC = """
8.8.8.8 52.84.1.1 172.32.0.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private(address: str) -> None:
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(AddressRefused):
        public_socket((family, socket.SOCK_STREAM, 6, "", (address, 80)))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public(address: str) -> None:
    assert is_public(address)
