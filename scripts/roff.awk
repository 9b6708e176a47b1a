# Plain text from the source of manual pages, each followed by a line with the one byte \004; a page becomes a document
# followed by the line given as -v separator=LINE. Keeps prose, headings and option names; drops requests, tables, fonts
# and the translators' notice, which is alike in all pages. For mawk and gawk.

function plain(s) {
    gsub(/\\f\[[^]]*\]/, "", s)           # fonts: \f[BI], \f(CW, \fB
    gsub(/\\f\([^ ][^ ]/, "", s)
    gsub(/\\f./, "", s)
    gsub(/\\s[-+]?[0-9]/, "", s)          # sizes
    gsub(/\\\*\(lq|\\\(lq|\\\*\(rq|\\\(rq/, "\"", s)
    gsub(/\\\*\(aq|\\\(aq|\\\(oq|\\\(cq/, "'", s)
    gsub(/\\\(em|\\\[em\]|\\\(en|\\\[en\]/, "-", s)
    gsub(/\\\(bu|\\\[bu\]/, "*", s)
    gsub(/\\\(ti/, "~", s)
    gsub(/\\\(ha/, "^", s)
    gsub(/\\\(co/, "(C)", s)
    gsub(/\\\([^ ][^ ]|\\\[[^]]*\]|\\\*\[[^]]*\]|\\\*\([^ ][^ ]|\\\*./, "", s)
    gsub(/\\[ ~0]/, " ", s)
    gsub(/\\e|\\\(rs/, "\001", s)
    gsub(/\\[&\/,:%|^c{}]/, "", s)
    gsub(/\\".*/, "", s)
    gsub(/\\/, "", s)                      # \- \. \' stand for the character itself
    gsub(/\001/, "\\", s)
    return s
}

function flush_line(s) {
    sub(/[ \t]+$/, "", s)
    if (s == "" && blank)
        return
    blank = (s == "")
    text = text s "\n"
}

function start_page() {
    text = ""
    table = macro = notice = 0
    blank = 1
}

BEGIN { start_page() }

/^\004$/ {
    # Stubs that only name another page are no text; one huge page would drown the others.
    if (length(text) >= 400 && length(text) <= 60000)
        printf "%s%s\n", text, separator
    start_page()
    next
}

/^\.TS/ { table = 1 }
/^\.TE/ { table = 0; next }
/^\.de/ { macro = 1 }
/^\.\.$/ { macro = 0 }
/^\.S[Hh]/ {
    notice = ($0 ~ /TRADU[CZ]|ÜBERSETZUNG|TRANSLAT|KOLOFON|COLOPHON|COLOFON/)
}
table || macro || notice { next }

/^[.'][ \t]*(\\"|$)/ { next }
/^\.(S[Hh]|SS|Sh|Ss)[ \t]/ {
    sub(/^\.[A-Za-z]+[ \t]+/, "")
    gsub(/"/, "")
    flush_line("")
    flush_line(plain($0))
    next
}
/^\.(PP|LP|P|TP|IP|HP|br|sp|Pp|RS|RE|nf|fi)([ \t]|$)/ { flush_line(""); next }
/^\.(BR|RB|BI|IB|IR|RI)[ \t]/ {              # parts in alternating fonts: joined, quotes keep their spaces
    sub(/^\.[A-Z]+[ \t]+/, "")
    line = ""
    while ($0 != "") {
        if (match($0, /^"[^"]*"?/)) {
            part = substr($0, 1, RLENGTH)
            gsub(/"/, "", part)
        } else {
            match($0, /^(\\ |[^ \t])+/)
            part = substr($0, 1, RLENGTH)
        }
        $0 = substr($0, RLENGTH + 1)
        sub(/^[ \t]+/, "")
        line = line part
    }
    flush_line(plain(line))
    next
}
/^\.(B|I|SM|SB)[ \t]/ {
    sub(/^\.[A-Z]+[ \t]+/, "")
    gsub(/"/, "")
    flush_line(plain($0))
    next
}
/^\.so[ \t]/ { next }
/^[.']/ { next }
{ flush_line(plain($0)) }
