"""Names of container images, and the goldens that stand for them: `image_names` in the configuration, or a golden."""

from __future__ import annotations

from posixpath import basename

from boxwood.core.model import ForkRequest
from boxwood.dialects.agentkernel import words
from boxwood.server.exchange import Exchange

DEFAULT = "alpine:3.20"
# What a program's name tells of the image that it wants, where none is named.
_GUESSES = {
    "node:22-alpine": "node npm npx yarn pnpm bun tsx ts-node",
    "python:3.12-alpine": "python python3 pip pip3 poetry uv pytest ruff",
    "rust:1.85-alpine": "cargo rustc rustup rustfmt",
    "golang:1.23-alpine": "go gofmt",
    "ruby:3.3-alpine": "ruby gem bundle bundler rake rails",
    "eclipse-temurin:21-alpine": "java javac mvn gradle gradlew",
    "mcr.microsoft.com/dotnet/sdk:8.0": "dotnet csc fsc",
    "gcc:14-bookworm": "gcc g++ clang clang++ make cmake cc",
    "php:8.3-alpine": "php composer",
    "elixir:1.16-alpine": "elixir mix iex",
    "nickblah/lua:5.4-alpine": "lua luajit luarocks",
    "hashicorp/terraform:1.10": "terraform",
}
_OF_PROGRAM = {program: image for image, programs in _GUESSES.items() for program in programs.split()}


def guess(exchange: Exchange, argv: list[str]) -> str:
    """The image that a command wants, as far as there is one."""
    wanted = _OF_PROGRAM.get(basename(argv[0]), DEFAULT)
    return wanted if wanted in exchange.core.config.image_names else DEFAULT


def source(exchange: Exchange, image: str) -> ForkRequest:
    """What is to be forked for an image. BadRequest, `core.goldens.UnknownImage`."""
    return exchange.core.goldens.source(words.image(image))
