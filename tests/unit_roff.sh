#!/bin/bash
# Manual pages become plain text: fonts, requests, tables and translators' notices go, the words and their characters stay.
set -euo pipefail

filler=$(printf 'word %.0s' {1..100})
got=$(LC_ALL=C awk -v separator='<|endoftext|>' -f "$SOURCE_DIR/scripts/roff.awk" <<END | grep -v "^word word"
.\\" a comment
.TH LS 1 "2022" "GNU" "Commands"
.de UX
dropped \$1
..
.SH NAME
ls \\- list \\fIfiles\\fP (été)
.PP
.PP
.BR ls "(1), see " dir (1)
.B "\\-\\-all"
A backslash is \\e, a quote \\(lqq\\(rq.\\" the rest is a comment
.TS
table
.TE
$filler
.SH TRADUCTION
the translators' notice
$(printf '\004')
.so man1/ls.1
$(printf '\004')
END
)
expected='
NAME
ls - list files (été)

ls(1), see dir(1)
--all
A backslash is \, a quote "q".
<|endoftext|>'
[[ $got == "${expected#?}" ]] || { diff <(echo "${expected#?}") <(echo "$got") && false; }
