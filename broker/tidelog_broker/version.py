"""The version of this distribution, in one place for broker and command line."""

VERSION = "0.1.0"
