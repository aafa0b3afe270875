"""What is fed to the shells, in their dialects: how a run is run, a state dumped, and put back by differences.

There is no loop and no helper function inside a shell, so there is nothing that a run could redefine, unset or break
out of. Every word that is fed is quoted against aliases (`\\word`), reached past functions (GUARD), and redirected
with `>|` because of noclobber. D is the session's directory:

    D/r the run's text   D/i its standard input   D/o, D/e FIFOs: its stdout, stderr   D/s FIFO: reports
    D/p what dumps the state   D/n asks which functions exist   D/gN, D/wN texts that restore, and their complaints
    D/qN makes $? be N
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, TypeAlias

from boxwood.engine.agent.state import State

# Expressions are compiled in the zygote, where all boxes have them in common: one compiled in a box costs it 400 KiB.
Note: TypeAlias = Callable[[str], None]
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\Z")
_MOST_DAMAGED = 20  # entries of a dump that are none: a forged one would have the whole rest looked through for each


def quote(text: bytes) -> bytes:
    """One word, quoted so that every shell reads exactly these bytes."""
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def entries(pattern: re.Pattern[bytes], text: bytes) -> Iterator[re.Match[bytes]]:
    """Those of a dump, one behind the other, each from the beginning of a line. Lines that are none are passed over;
    where there are too many of them the rest is."""
    at, damaged = 0, 0
    while at < len(text) and damaged < _MOST_DAMAGED:
        if found := pattern.match(text, at):
            yield found
            at = found.end()
            continue
        end = text.find(b"\n", at) + 1 or len(text)
        damaged += text.find(b"=", at, end) >= 0 or text.startswith(b"trap", at)  # others fail at once
        at = end


class Dialect:
    """What bash and the POSIX shells have in common."""

    kind = b""
    argv: tuple[bytes, ...] = ()  # how it is started: argv[1:] names a link to its control pipe
    row: tuple[bytes, ...] = ()  # names of the fields of a report
    early = b""
    guard = b""  # the builtin that reaches builtins hidden by functions, itself the only one to be dropped
    via = b""  # how the special builtins are called
    status = b""
    special: frozenset[bytes] = frozenset()  # variables that are dynamic, fixed, or meaningless in another process
    volatile: re.Pattern[bytes]  # lines of the dump that change all by themselves
    leak: re.Pattern[bytes] | None = None  # what may be at the end of stderr when a run has switched tracing on
    poison = b""  # a complaint after which the shell is not to be trusted any more
    _dump_first = b""
    _dump: tuple[bytes, ...] = ()
    _late_options = (b"errexit", b"xtrace", b"verbose")
    _no_options = (b"onecmd", b"noexec", b"stdin", b"interactive")
    _trap = re.compile(rb"trap -- ((?:'[^']*+'|\"[^\"]*+\"|\\.)++) (\S++)\n", re.S)
    _word = re.compile(rb"'([^']*)'|\"([^\"]*)\"|\\(.)|([^'\"\\]+)", re.S)

    def unquote(self, text: bytes) -> bytes:
        return b"".join(next(g for g in m.groups() if g is not None) for m in self._word.finditer(text))

    # --- feeding

    def source(self, file: bytes, complaints: bytes) -> bytes:
        return b"\\%s . %s 2>|%s\n" % (self.guard, file, complaints)

    def run(self, d: bytes, stdin: bytes, before: bytes, traced: bool) -> bytes:
        raise NotImplementedError

    def dump(self, d: bytes) -> bytes:
        raise NotImplementedError

    def report(self, d: bytes, first: bytes | None = None) -> bytes:
        """Say the status, with which the run is over, and then the state. `_bw` is the one name of ours in the shell;
        it lives from here to the end of D/p."""
        status = self.status if first is None else first
        return b"%s\\unset -f %s;\\%s printf 'R%%s\\0' \"$_bw\" >|%s/s;%s\n" % (
            status, self.guard, self.guard, d, self.dump(d),
        )  # fmt: skip

    def exit_trap(self, d: bytes) -> bytes:
        """In a group with stderr away, because of `set -x; exit`."""
        return b"{ \\unset -f %s;\\%s printf 'X\\0' >|%s/s;%s; } 2>/dev/null" % (
            self.guard, self.guard, d, self.dump(d),
        )  # fmt: skip

    def set_exit_trap(self, d: bytes) -> bytes:
        return b"%strap -- %s EXIT\n" % (self.via, quote(self.exit_trap(d)))

    def dump_file(self, d: bytes) -> bytes:
        """Each command has its own redirection: what a DEBUG trap prints must not get into the dump."""
        to, guard = b" >|%s/s\n" % d, b"\\%s " % self.guard
        nul = guard + b"printf '\\0'" + to
        sections = nul.join(command.replace(b"D/", d + b"/") + to for command in self._dump)
        place = nul + guard + b"umask" + to + guard + b"pwd" + to
        count = guard + b"printf '\\0%s\\0' \"$#\"" + to
        args = b"case $# in 0) ;; *) " + guard + b"printf '%s\\0' \"$@\" >|" + d + b"/s;; esac\n"
        end = guard + b"printf 'E\\0'" + to + self.via + b"unset -v _bw\n"
        # errexit ends with the run: in the next one, `false; echo on` must print.
        first = self.via + b"set +e\n" + self._dump_first.replace(b"D/", d + b"/")
        return first + nul + sections + place + count + args + end

    def heal(self, d: bytes) -> bytes:
        """For a shell that came back without a report: the report again, past what may have been in its way."""
        return self.report(d, b"")

    # --- understanding

    def begin(self, hostname: str) -> bytes:
        """Fed to every new shell first."""
        return self.early

    def arm(self, sections: dict[bytes, bytes], d: bytes) -> dict[bytes, bytes]:
        """Our own EXIT trap is no part of the state; without any (`armed` empty) it has to be set again."""
        traps, ours = sections[b"traps"], self.exit_trap(d)
        sections[b"armed"] = b"1" if b" EXIT\n" in traps else b""
        kept = [m[0] for m in entries(self._trap, traps) if self.unquote(m[1]) != ours]
        sections[b"traps"] = b"".join(kept)
        return sections

    def flags(self, sections: Mapping[bytes, bytes]) -> set[bytes]:
        """The options of `set` that are on."""
        raise NotImplementedError

    def exported(self, sections: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """The environment that the shell gives to what it starts."""
        raise NotImplementedError

    def visible(self, sections: Mapping[bytes, bytes]) -> dict[bytes, object]:
        """The state in a form to compare."""
        raise NotImplementedError

    def fingerprint(self, state: State) -> int:
        """Equal for states that differ at most in what changes all by itself."""
        steady = self.volatile.sub(b"", state.sections[b"vars"])
        others = tuple(v for k, v in state.sections.items() if k != b"vars")
        return hash((steady, others, tuple(state.args), tuple(state.functions.items()), state.code))

    # --- putting back

    def initial(self, env: Mapping[bytes, bytes], cwd: bytes) -> list[bytes]:
        """The texts, to be sourced, that give a fresh shell its environment and directory."""
        lines = [b"cd -- %s; unset -v OLDPWD" % quote(cwd)]
        for name, value in env.items():
            if _NAME.match(name) and name not in self.special:
                lines.append(b"\\export %s=%s" % (name, quote(value)))
        return [b"\n".join(lines)]

    def restore(self, state: State, base: State, note: Note) -> list[bytes]:
        """The texts that make a fresh shell (in the state `base`) into this one: one per kind, to be sourced
        separately, since a parse error ends a sourced file. Only differences are emitted."""
        raise NotImplementedError

    def _place(self, sections: Mapping[bytes, bytes], note: Note) -> bytes:
        wanted = cwd = sections[b"cwd"] or b"/"
        while not os.path.isdir(cwd) and cwd != b"/":
            cwd = os.path.dirname(cwd) or b"/"
        if cwd != wanted:
            note(f"the directory {os.fsdecode(wanted)!r} is gone")
        return b"\\%s cd -- %s" % (self.guard, quote(cwd))

    def _last(self, state: State, options: set[bytes], options0: set[bytes]) -> list[bytes]:
        """The end of a restoration: what could disturb the rest of it."""
        lines = [b"\\%s umask %s" % (self.guard, quote(state.sections[b"umask"]))]
        if state.args:
            lines.append(self.via + b"set -- " + b" ".join(map(quote, state.args)))
        lines += [self.via + m[0][:-1] for m in entries(self._trap, state.sections[b"traps"])]
        lines += [self.via + b"set +o " + o for o in sorted(options0 - options) if o not in self._no_options]
        new = sorted(options - options0, key=lambda o: (o in self._late_options, o))
        return lines + [self.via + b"set -o " + o for o in new if o not in self._no_options]

    def definitions(self, text: bytes) -> Iterator[tuple[bytes, Iterator[bytes]]]:
        """Names of functions that a text may define, each with texts one of which may be its definition."""
        return iter(())


class Bash(Dialect):
    kind = b"bash"
    argv = (b"bash", b"--norc", b"--noprofile", b"bash")
    row = (b"vars", b"funcs", b"fattrs", b"aliases", b"dirs")
    early = b"exec </dev/null; shopt -s expand_aliases\n"  # an alias of one run is to work in the next
    guard, via = b"builtin", b"\\builtin "
    status = b"_bw=$?;"
    special = frozenset(
        b"""BASH BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND
        BASH_EXECUTION_STRING BASH_LINENO BASH_MONOSECONDS BASH_REMATCH BASH_SOURCE BASH_SUBSHELL BASH_TRAPSIG
        BASH_VERSINFO BASH_VERSION BASH_XTRACEFD COMP_WORDBREAKS DIRSTACK EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME
        GROUPS HISTCMD HOSTNAME LINENO PIPESTATUS PPID RANDOM SECONDS SHELLOPTS SRANDOM UID _ _bw""".split()
    )
    volatile = re.compile(
        rb"(?m)^declare -\S+ (?:BASHPID|BASH_[A-Z]\w+|EPOCH\w+|HISTCMD|LINENO|PIPESTATUS|PPID|S?RANDOM|SECONDS|_|_bw)"
        rb"=.*\n"
    )
    # bash 5.2 has freed what it still uses then, and one time in eight dies in the next command.
    poison = b"unexpected EOF while looking for matching `)'"
    _dump = (
        b"\\builtin declare -p", b"\\builtin declare -f", b"\\builtin declare -F", b"\\builtin alias -p",
        b"\\builtin dirs -l -p",
    )  # fmt: skip
    _declare = re.compile(
        rb"declare -(\S++) ([A-Za-z_]\w*+)(?:=((?:\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"|\$'[^'\\]*+(?:\\.[^'\\]*+)*+'"
        rb"|'[^']*+'|[^\"'\n\\$]++|\\.|\$)*+))?\n",
        re.S,
    )
    _escaped = re.compile(rb"\\([0-7]{1,3}|x[0-9A-Fa-f]{1,2}|.)", re.S)
    _shellopts = re.compile(rb'(?m)^declare -\S+ SHELLOPTS="([a-z:-]*)"$')
    _quoted = re.compile(rb'\\([$`"\\])')
    _aliases = re.compile(rb"(?m)^alias ")
    _escapes: ClassVar = {b"a": b"\a", b"b": b"\b", b"E": b"\x1b", b"e": b"\x1b", b"f": b"\f", b"n": b"\n", b"r": b"\r",
                b"t": b"\t", b"v": b"\v"}  # fmt: skip

    def begin(self, hostname: str) -> bytes:
        # It has looked for the name when it came up, which may have been before the VM was known.
        return self.early + b"HOSTNAME=%s\n" % quote(hostname.encode())

    def run(self, d: bytes, stdin: bytes, before: bytes, traced: bool) -> bytes:
        # On a simple command: the shell takes these redirections back whatever the run did to its descriptors 0-2,
        # and `set -x` shows them on the stderr outside, which is /dev/null.
        return before + b"\\builtin . %s/r <%s >|%s/o 2>|%s/e\n" % (d, stdin, d, d)

    def dump(self, d: bytes) -> bytes:
        # `trap -p` must not stand in the sourced file: bash hides the DEBUG trap from it.
        return b"\\builtin trap -p >|%s/s;\\builtin . %s/p" % (d, d)

    def heal(self, d: bytes) -> bytes:
        # In posix mode special builtins (unset) come before functions, and nothing can hide an assignment.
        return b"POSIXLY_CORRECT=1\n\\unset -f builtin unset\n\\unset -v POSIXLY_CORRECT\n" + self.report(d, b"")

    def _variables(self, sections: Mapping[bytes, bytes]) -> dict[bytes, tuple[bytes, bytes | None]]:
        """name -> (attributes, value as bash quotes it or None)"""
        return {m[2]: (m[1].replace(b"-", b""), m[3]) for m in entries(self._declare, sections[b"vars"])}

    def _options(self, variables: Mapping[bytes, tuple[bytes, bytes | None]]) -> tuple[set[bytes], set[bytes]]:
        """What is on of shopt and of set; bash keeps both lists in variables."""
        shopts, sets = (
            set((variables.get(name, (b"", b""))[1] or b"").strip(b'"').split(b":")) - {b""}
            for name in (b"BASHOPTS", b"SHELLOPTS")
        )
        return shopts, sets

    def flags(self, sections: Mapping[bytes, bytes]) -> set[bytes]:
        found = self._shellopts.search(sections[b"vars"])
        return set(found[1].split(b":")) if found else set()

    def exported(self, sections: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return {
            name: self._value(value)
            for name, (attributes, value) in self._variables(sections).items()
            if b"x" in attributes and value is not None and not set(b"aA") & set(attributes) and name != b"_"
        }

    def _value(self, text: bytes) -> bytes:
        """What bash has quoted for `declare -p`, as it is."""
        if text.startswith(b"$'"):
            return self._escaped.sub(self._meant, text[2:-1])
        if text.startswith(b'"'):
            return self._quoted.sub(lambda match: match[1], text[1:-1]).replace(b"\\\n", b"")
        return self.unquote(text)

    def _meant(self, match: re.Match[bytes]) -> bytes:
        what: bytes = match[1]
        if what[:1].isdigit():
            return bytes([int(what, 8) & 255])
        if len(what) > 1:
            return bytes([int(what[1:], 16)])
        return self._escapes.get(what, what)

    def visible(self, sections: Mapping[bytes, bytes]) -> dict[bytes, object]:
        variables = self._variables(sections)
        return {
            **{name: value for name, value in sections.items() if name != b"vars"},
            b"vars": {name: value for name, value in variables.items() if name not in self.special},
            b"options": self._options(variables),
        }

    def restore(self, state: State, base: State, note: Note) -> list[bytes]:
        s, v, v0 = state.sections, self._variables(state.sections), self._variables(base.sections)
        (shopts, sets), (shopts0, sets0) = self._options(v), self._options(v0)
        # What changes the parsing of the rest (extglob) comes first. Plainly named commands: nothing is redefined
        # yet, and `\declare a=(...)` would be a syntax error.
        first = [b"shopt -u " + o for o in sorted(shopts0 - shopts)]
        first += [b"shopt -s " + o for o in sorted(shopts - shopts0) if o not in (b"login_shell", b"restricted_shell")]
        first += [b"pushd -n " + quote(place) for place in reversed(s[b"dirs"].split(b"\n")[1:-1])]
        first.append(self._place(s, note))
        first += [b"unset -v " + name for name in v0 if name not in v and name not in self.special]
        late: list[bytes] = []
        for name, (attributes, value) in sorted(v.items(), key=lambda item: b"n" in item[1][0]):  # namerefs last
            if name in self.special:
                if b"x" in attributes and name in (b"SHELLOPTS", b"BASHOPTS"):
                    late.append(b"\\builtin export " + name)
            elif name == b"POSIXLY_CORRECT":  # its assignment switches the mode
                late.append(b"%s=%s" % (name, value or b""))
            elif v0.get(name) != (attributes, value):
                first += self._declaration(name, attributes, value, v0.get(name, (b"", None))[0])
        functions = [b"eval " + quote(text) for text in self._functions(s)]
        marks = [b"\\builtin " + line for line in s[b"fattrs"].splitlines() if not line.startswith(b"declare -f ")]
        aliases = self._aliases.sub(
            lambda match: b"\\builtin alias ", s[b"aliases"]
        )  # expanded in the functions already
        last = late + self._last(state, sets, sets0)
        return [b"\n".join(first), b"\n".join(functions), b"\n".join(marks), aliases, b"\n".join(last)]

    def _declaration(self, name: bytes, attributes: bytes, value: bytes | None, attributes0: bytes) -> list[bytes]:
        """The value first and the attributes then: -i would evaluate it, -r refuse it."""
        lines = []
        gone = bytes(c for c in attributes0 if c not in attributes)
        if gone:
            lines.append(b"declare +%s %s" % (gone, name))
        assigned = b"" if value is None else b"=" + value
        if b"n" in attributes:
            return [*lines, b"declare -%s %s%s" % (attributes, name, assigned)]
        kind = bytes(c for c in attributes if c in b"aAx") or b"-"
        rest = bytes(c for c in attributes if c not in b"aAxn")
        lines.append(b"declare -%s %s%s" % (kind, name, assigned))
        if rest:
            lines.append(b"declare -%s %s" % (rest, name))
        return lines

    def _functions(self, sections: Mapping[bytes, bytes]) -> list[bytes]:
        """`declare -f` function by function: not all that it prints can be read back (bash 5.3 forgets the word
        `function` before a name like `if`), and one bad function must not cost the others."""
        text, starts, at, missing = b"\n" + sections[b"funcs"], [], 0, 0
        for name in (line.split(b" ", 2)[2] for line in sections[b"fattrs"].splitlines() if line.count(b" ") >= 2):
            match = re.compile(rb"\n(?:function )?%s \(\) *\n" % re.escape(name)).search(text, at)
            if match:
                starts.append((match.start() + 1, name))
                at = match.end() - 1
            elif (missing := missing + 1) == _MOST_DAMAGED:
                break
        ends = [*(start for start, _ in starts), len(text)][1:]
        parts = [(text[start:end], name) for (start, name), end in zip(starts, ends, strict=True)]
        return [b"function " + part[part.index(name) :] for part, name in parts]


class Posix(Dialect):
    """dash and busybox ash. Their special builtins cannot be redefined. `command .` (and not `.`) makes the shell
    survive what ends a script: syntax errors, ${x?}, set -u, assignments to read-only variables."""

    kind = b"sh"
    row = (b"vars", b"exports", b"readonly", b"options", b"aliases", b"known")
    early = b"exec </dev/null\n"
    guard, via = b"command", b"\\"
    status = b"{ _bw=$?.$-;} 2>/dev/null;\\exec </dev/null >/dev/null 2>&1;"
    special = frozenset(b"PPID LINENO FUNCNAME RANDOM SECONDS EPOCHSECONDS EPOCHREALTIME _ _bw".split())
    volatile = re.compile(rb"(?m)^(?:PPID|LINENO|RANDOM|SECONDS|EPOCH\w+|_|_bw)=.*\n")
    leak = re.compile(rb"(?m)(?:^(?:[^\n]*exec *\n|\{ _bw=[^\n]*\n|\+[^\n]*\Z))+\Z")
    _dump_first = b"\\trap >|D/s\n"
    _dump = (b"\\set", b"\\export -p", b"\\readonly -p", b"\\set +o", b"\\command alias", b"\\. D/n")
    _assign = re.compile(
        rb"(?:(?:export|readonly) )?([A-Za-z_]\w*+)(?:=((?:'[^']*+'|\"[^\"]*+\"|\\.|[^\s'\"\\])*+))?\n", re.S
    )
    _alias = re.compile(rb"([^\s='\"]++=(?:'[^']*+'|\"[^\"]*+\"|\\.)++)\n", re.S)
    _function = re.compile(rb"(?:^|(?<=[;&|({\s]))([A-Za-z_]\w*+)[ \t]*+\([ \t]*+\)", re.M)

    def __init__(self, name: bytes) -> None:
        self.argv = (name, name)

    def run(self, d: bytes, stdin: bytes, before: bytes, traced: bool) -> bytes:
        # These shells take the redirections of a simple command back before they run an EXIT trap, so what that
        # prints would be lost: exec. While `set -x` or `-v` is on, stderr must be done in the other way.
        if traced:
            return b"\\exec <%s >|%s/o\n%s\\command . %s/r 2>|%s/e\n" % (stdin, d, before, d, d)
        return b"\\exec <%s >|%s/o 2>|%s/e\n%s\\command . %s/r\n" % (stdin, d, d, before, d)

    def dump(self, d: bytes) -> bytes:
        return b"\\. %s/p" % d

    def _variables(self, text: bytes) -> dict[bytes, bytes | None]:
        return {m[1]: None if m[2] is None else self.unquote(m[2]) for m in entries(self._assign, text)}

    def flags(self, sections: Mapping[bytes, bytes]) -> set[bytes]:
        return {line[7:] for line in sections[b"options"].splitlines() if line.startswith(b"set -o ")}

    def exported(self, sections: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        found = self._variables(sections[b"exports"])
        return {name: value for name, value in found.items() if value is not None and name != b"_"}

    def visible(self, sections: Mapping[bytes, bytes]) -> dict[bytes, object]:
        variables = self._variables(sections[b"vars"])
        return {
            **{name: value for name, value in sections.items() if name != b"known"},
            b"vars": {name: value for name, value in variables.items() if name not in self.special},
        }

    def restore(self, state: State, base: State, note: Note) -> list[bytes]:
        s, s0 = state.sections, base.sections
        v, v0, x, x0 = (self._variables(t) for t in (s[b"vars"], s0[b"vars"], s[b"exports"], s0[b"exports"]))
        gone = {n for n in {*v0, *x0} if n not in self.special and (n not in v or (n in x0 and n not in x))}
        first = [self._place(s, note)]
        first += [b"\\unset -v " + name for name in sorted(gone)]
        first += [
            b"%s=%s" % (name, quote(value))
            for name, value in v.items()
            if name not in self.special and value is not None and (v0.get(name) != value or name in gone)
        ]
        first += [b"\\export " + name for name in x if name not in self.special and (name not in x0 or name in gone)]
        aliases = [b"\\command alias " + m[1] for m in entries(self._alias, s[b"aliases"])]
        late = [b"\\readonly " + name for name in self._variables(s[b"readonly"]) if name not in self.special]
        last = late + self._last(state, self.flags(s), self.flags(s0))
        return [b"\n".join(first), *state.functions.values(), b"\n".join(aliases), b"\n".join(last)]

    def ask(self, names: Mapping[bytes, bytes], d: bytes, number: int) -> bytes:
        """The contents of D/n: have the next dump tell which of these are functions, and that it was asked this."""
        marked = b"\\command printf '#%d\\n' >|%s/s\n" % (number, d)
        return marked + b"".join(b"\\command -V %s >|%s/s || :\n" % (name, d) for name in names)

    def definitions(self, text: bytes) -> Iterator[tuple[bytes, Iterator[bytes]]]:
        """From `name()` to each `}` or `)`. A heuristic: a function that comes from a sourced file or from eval is
        not seen, and of two definitions in one text the last is taken."""
        for match in self._function.finditer(text):
            start, body = match.start(1), text[match.end() : match.end() + (1 << 16)]
            ends = (match.end() + end.end() for end in re.finditer(rb"[})]", body))
            yield match[1], (text[start:end] for end in ends)


KINDS: dict[bytes, Dialect] = {kind.kind: kind for kind in (Bash(), Posix(b"sh"))}


def dialect(exe: bytes) -> Dialect:
    """The dialect of the shell at this path."""
    name = os.path.basename(os.path.realpath(exe))
    if b"bash" in name:
        return KINDS[b"bash"]
    return Posix(b"sh" if b"busybox" in name or not _NAME.match(name) else name)


def saved_state(data: bytes) -> State:
    """A packed state with all that its dialect needs. ValueError: it is none."""
    state = State.unpack(data)
    kind = KINDS.get(state.kind)
    if kind is None or not {b"traps", *kind.row, b"umask", b"cwd", b"armed"} <= state.sections.keys():
        raise ValueError("the state of a shell, damaged")
    return state
