"""What stays from run to run, and through the end of a shell."""

from __future__ import annotations

EVERY = bytes(b for b in range(1, 256) if b != 0x27)


def test_state_stays(s, office, work):
    (work / "sub").mkdir()
    s.run("cd sub; export E=exported; v='plain  value'; f() { echo \"f:$1\"; }; alias a='echo al'; umask 027")
    s.run(
        "pwd; sh -c 'echo $E'; echo \"$v\"; f 1; a; umask",
        out=b"%s/sub\nexported\nplain  value\nf:1\nal\n0027\n" % str(work).encode(),
    )
    s.run("set -f; set -- p 'q r'; trap 'echo usr1' USR1")
    s.run('echo * $# "$2"; kill -USR1 $$; :', out=b"* 2 q r\nusr1\n")
    s.run("unset -f f; unalias a; set +f; trap - USR1; unset v")
    s.run("f", 127, err=None)
    s.run("a", 127, err=None)
    s.run("echo ${v-unset}", out=b"unset\n")
    if office.bash:
        s.run("A=(1 '2 3'); declare -A M=([k k]=v); shopt -s extglob nullglob; set -o pipefail")
        s.run("echo ${#A[@]} ${A[1]} ${M[k k]}; false | true", 1, out=b"2 2 3 v\n")
        s.run("[[ xx == +(x) ]] && echo $(echo nosuch*) eg", out=b"eg\n")


def fill(s, work):
    s.run(
        f"cd {work}; export E='a b\nc'; v='it'\\''s \"q\" $x `y` \\\\'; f() {{ echo \"f:$1\"; }}; "
        "alias al='echo \"a  b\"'; umask 0077; set -- 'one 1' '' 'E'; readonly RO='r o'; export unset_exported"
    )
    s.run(b"bin='" + EVERY + b"'")
    s.run("trap 'echo \"u s r\"\n:' USR1; trap '' USR2; set -f -C; false", 1)


def check(s):
    s.run(
        'echo $?; printf \'%s\\n\' "$E|$v"; f x; al; umask; echo "$1|$2|$3|$#"; echo $RO; echo *; kill -USR1 $$; :',
        out=b'1\na b\nc|it\'s "q" $x `y` \\\\\nf:x\na  b\n0077\none 1||E|3\nr o\n*\nu s r\n',
    )
    s.run('printf %s "$bin"', out=EVERY)
    s.run("RO=1", None, err=None)
    s.run("sh -c 'echo \"$E\"'", out=b"a b\nc\n")


def test_a_new_box_takes_the_state_over(s, office, work):
    """The frame that a state came in opens a session of the same kind elsewhere."""
    fill(s, work)
    other = office.session(work=work, state=s.state())
    check(other)
    assert not other.notes
    other.run("x=from-other; (exit 7)", 7)
    third = office.session(work=work, state=other.state())
    third.run("echo $?; echo $x; f 2", out=b"7\nfrom-other\nf:2\n")
    third.close()
    other.close()
    check_again = "printf '%s\\n' \"$v\""
    s.run(check_again, out=b'it\'s "q" $x `y` \\\\\n')


def test_a_state_tells_directory_and_environment(s, office, work):
    (work / "d é").mkdir()
    s.run("cd 'd é'; export A='x y' B=\"$(printf 'l1\\nl2\\t$`\"\\\\')\" C='a'\\''b'; local_only=1; unset HOME")
    s.state()
    told = office.told[-1]
    assert told["cwd"] == f"{work}/d é"
    assert told["env"]["A"] == "x y" and told["env"]["B"] == 'l1\nl2\t$`"\\' and told["env"]["C"] == "a'b"
    assert "local_only" not in told["env"] and "HOME" not in told["env"] and told["env"]["PWD"] == told["cwd"]
    s.run(b"export D='\xff\xfe'")
    s.state()
    assert office.told[-1]["env"]["D"] == "\udcff\udcfe"
    count = len(office.told)
    s.run("true")
    s.run("echo same", out=b"same\n")
    office.settle()
    assert len(office.told) == count  # nothing has changed
    s.run("cd /")


def test_the_whole_state_is_exact(s, office, work):
    """After a restoration the dump is, in all that is visible, the dump before."""
    fill(s, work)
    if office.bash:
        s.run(
            "declare -i num=5; declare -u UP=abc; declare -l low=ABC; declare -a arr=(a 'b c' $'d\\ne' $'\\xff\\x01')\n"
            "unset 'arr[0]'; declare -A map=([a]=1 ['x y']=$'q\\nr' [']']=b ['\"']=c ['$x']=d); declare -n ref=map\n"
            "declare -n loop; declare -ar ROA=(1 2); declare -ir ROI=7; x=abc; declare -i x; declare -x EX\n"
            "declare -a empty=(); declare -A emptymap; export SHELLOPTS; nl=$'a\\nb\\n\\n'; tab=$'\\t'; eu='€ü'\n"
            "declare -x PATH; pushd -n /usr >/dev/null; pushd -n '/a b' >/dev/null; shopt -s extglob globstar\n"
            "set -o pipefail"
        )
        s.run(
            'g() { cat <<X | tr a b\naaa $1\nX\n[[ $1 == @(a|b) ]] && echo "$(cat <<Y\nyy\nY\n)"; }\n'
            "export -f g; function if { echo if; }; function a-b { :; }; h() ( exit 3 ); declare -ft h\n"
            "k() { case $1 in x) echo 'q;;' ;; esac; for ((i=0;i<2;i++)); do :; done; echo ${1//[^a]/\\'}; }\n"
            "readonly -f k; trap 'd=1' DEBUG; trap 'e=1' ERR; trap 'r=1' RETURN; set -E\n"
            "alias -- '-x=echo minus' ; alias q=\"echo 'x'\" nlal='echo a\necho b'; set -u"
        )
    else:
        s.run("g() {\n  if true; then { echo 'g }'; }; fi\n}\nh() ( exit 3 )")
        s.run("set -u; alias q=\"echo 'x'\" nlal='echo a\necho b'; unset PS2; IFS=:")
    other = office.session(work=work, state=s.state())
    other.run(":")
    office.settle()
    visible = s.inside._kind.visible
    before, after = visible(s.inside.state.sections), visible(other.inside.state.sections)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, dict):
            names = value.keys() | after[key].keys()
            different = {n: (value.get(n), after[key].get(n)) for n in names if value.get(n) != after[key].get(n)}
            assert not different.keys() - {b"d", b"e", b"r"}, different
        else:
            assert value == after[key], key
    other.run("h", 3)
    if office.bash:
        other.run("g a; echo ${map[x y]} ${ref[a]}; declare -p ref", out=b'bbb b\nyy\nq r 1\ndeclare -n ref="map"\n')
        other.run("q; set +u; trap - DEBUG ERR RETURN", out=b"x\n")
        other.run("bash -c 'g b; echo $SHELLOPTS'", out=r"bbb b\nyy\n.*pipefail")
        s.run("trap - DEBUG ERR RETURN; set +uE; unset -f if; shopt -u extglob globstar")
    else:
        other.run("g; q; IFS=' '; set +u", out=b"g }\nx\n")
        s.run("IFS=' '; set +u")
    other.close()


def test_a_large_state(s, office, work):
    s.run("i=0; while [ $i -lt 2000 ]; do eval \"big_$i='value number $i with some text'\"; i=$((i+1)); done")
    s.run("blob=$(head -c 300000 /dev/zero | tr '\\0' x); exit 1", 1)
    s.run("echo $big_1999 ${#blob}", out=b"value number 1999 with some text 300000\n")


def test_a_state_that_is_too_large(s, office):
    """It is not kept; the session goes on, and its next shell is as it was before."""
    s.run("x=1")
    s.state()
    count = len(office.states[s.sid])
    s.run("x=2; blob=$(head -c 9000000 /dev/zero | tr '\\0' x)")
    s.run("echo $x ${#blob}", out=b"2 9000000\n")
    assert len(s.state()) == count
    assert any("8 MiB" in note for note in s.notes)
    s.run("kill -9 $$", 137)
    s.run("echo $x ${#blob}", out=b"1 0\n")
    s.notes.clear()


OF_BASH = {
    "vars": 'declare -x HOME="/h"\ndeclare -x KEPT="a \\"b\\""\ndeclare -- lost="1"\n', "funcs": "", "fattrs": "",
    "aliases": "", "dirs": "/usr\n",
}  # fmt: skip
OF_SH = {
    "vars": "IFS=' \t\n'\nOPTIND='1'\nPS1='# '\nPS2='> '\nPS4='+ '\nPATH='/bin'\nKEPT='a \"b\"'\nlost='1'\n", "exports": "export KEPT='a \"b\"'\n", "readonly": "", "options": "",
    "aliases": "", "known": "",
}  # fmt: skip


def packed(kind, sections):
    sections = {**sections, "traps": "", "umask": "0022", "cwd": "/usr", "armed": "1"}
    fields = ["boxwood shell 1", kind, "3", str(len(sections))]
    return "\0".join([*fields, *(x for pair in sections.items() for x in pair), "0"]).encode()


def test_another_shell(office, work):
    """A state that was written by another kind of shell gives directory and environment."""
    state = packed("sh", OF_SH) if office.bash else packed("bash", OF_BASH)
    s = office.session(work=work, state=state)
    s.run('echo "$KEPT$lost"; pwd', out=b'a "b"\n/usr\n')
    assert any("another shell" in note for note in s.notes)
    same = packed("bash", OF_BASH) if office.bash else packed("sh", OF_SH)
    s = office.session(work=work, state=same)
    s.run('echo "$?$KEPT$lost"; pwd', out=b'3a "b"1\n/usr\n')
    assert not s.notes


def test_a_damaged_state_is_refused(office, work):
    for state in (
        b"nonsense",
        b"boxwood shell 1\0bash\x000\x0099\0a\0b",
        b"boxwood shell 1\0bash\0x\x000\x000\0",
        packed("bash", OF_SH),
    ):
        answer = office.ask
        try:
            answer("session.open", state, sid=office.number(), env={}, cwd="/")
        except ValueError:
            pass
        else:
            raise AssertionError("taken for a state")
    assert office.desk.hello()["sessions"] == []
