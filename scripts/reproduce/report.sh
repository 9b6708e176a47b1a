#!/bin/bash
# The report of scripts/reproduce/small.sh as Markdown on standard output: report.sh FOLDER [NOTE].
# Reads FOLDER/{bytes,bpe}/results.tsv; what is not there is left out. Draws no conclusion beyond what it counts.
set -euo pipefail

[[ $# -ge 1 && $# -le 2 && -d $1 ]] || { echo "usage: scripts/reproduce/report.sh FOLDER [NOTE]" >&2 && exit 2; }
top=$1
cat <<TEXT
# A small experiment on routes

One source with learned routes; Grouters distilled from the router of its first or its last layer, with causal or
bidirectional attention, then tuned; targets of the same size on the routes of each. The targets of one seed have the same
first weights (but for routers of their own), active parameters, windows and order of windows. Losses are of all
validation windows, at the end of training, in nats per token (with the vocabulary "bytes" that is per byte but for ends of documents).
TEXT
[[ -z ${2-} ]] || printf '\n%s\n' "$2"

for set in bytes bpe; do
    [[ -s $top/$set/results.tsv ]] || continue
    printf '\n## Vocabulary: %s\n' "$set"
    LC_ALL=C awk -F '\t' -v set="$set" '
        function mean_of(sum, n) { return n ? sum / n : 0 }
        function spread(sum, square, n) { # standard deviation over seeds
            if (n < 2) return "-"
            return sprintf("%.4f", sqrt(square > sum * sum / n ? (square - sum * sum / n) / (n - 1) : 0))
        }
        function pair(t, o,   s, x) { # sums over the seeds that both have
            n_pair = difference = squares = 0
            for (s = 1; s <= seeds; s++) if ((t, s) in loss && (o, s) in loss) {
                x = loss[t, s] - loss[o, s]; n_pair++; difference += x; squares += x * x
            }
            return n_pair
        }
        $1 == "grouter" {
            row[++n_row] = sprintf("| %s | %.4f | %.3f | %.3f | %.3f | %.2f | %.2f | %d | %d |", $2, $3, $4, $5, $6, $7, $8, $9, $10)
        }
        $1 == "target" {
            if (!($2 in count)) name[++n_name] = $2
            count[$2]++; sum[$2] += $4; square[$2] += $4 * $4; violation[$2] += $5
            tokens[$2] = $6; all[$2] = $7; loss[$2, $3] = $4
            if ($8 != "-") { leak[$2] = $8; error[$2] = $9 }
            if ($3 > seeds) seeds = $3
        }
        END {
            print "\n### Grouters\n"
            print "KL: divergence from the source`s router, nats. Same, overlap: share of tokens with the same experts, and of"
            print "experts in common, against the source; tuned overlap: against the Grouter before tuning. MaxVio: of the validation routes.\n"
            print "| Grouter | KL | same | overlap | tuned overlap | MaxVio raw | MaxVio tuned | tokens: distillation | tuning |"
            print "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
            for (i = 1; i <= n_row; i++) print row[i]
            print "\n### Targets\n"
            print "Spread: standard deviation over seeds. MaxVio: of each training batch, mean over the run (learned: and over layers)."
            print "All-in tokens: with those of source, distillation and tuning. Leak: what the loss rises by when the routes are"
            print "made without the tokens that come after, of seed 1, with its standard error.\n"
            print "| routes | seeds | loss | spread | MaxVio | tokens | all-in tokens | leak | loss + leak |"
            print "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
            for (i = 1; i <= n_name; i++) {
                t = name[i]
                printf "| %s | %d | %.4f | %s | %.2f | %d | %d | %s | %s |\n", t, count[t], mean_of(sum[t], count[t]),
                    spread(sum[t], square[t], count[t]), violation[t] / count[t], tokens[t], all[t],
                    t in leak ? sprintf("%.4f ± %.4f", leak[t], error[t]) : "-",
                    t in leak ? sprintf("%.4f", mean_of(sum[t], count[t]) + leak[t]) : "-"
            }
            print "\n### Differences\n"
            print "Loss minus that of the other, of the same seed; negative: better. Spread: standard deviation of that difference over seeds.\n"
            print "| routes | against | seeds | difference | spread | tokens | all-in tokens | all-in tokens of the other |"
            print "|---|---|---:|---:|---:|---:|---:|---:|"
            n_other = split("learned hash learned-all-in", other, " ")
            for (j = 1; j <= n_other; j++) for (i = 1; i <= n_name; i++) {
                t = name[i]; o = other[j]
                if (t == o || !pair(t, o)) continue
                printf "| %s | %s | %d | %+.4f | %s | %d | %d | %d |\n", t, o, n_pair, difference / n_pair,
                    spread(difference, squares, n_pair), tokens[t], all[t], all[o]
            }
            if (set == "bytes") {
                print "\n### Against a first look\n"
                print "A first look, with 3.5 M parameters and 3.2 M bytes, had the losses on the left.\n"
                print "| routes | first look | here |"
                print "|---|---:|---:|"
                n = split("learned 1.65 hash 1.59 causal-first 1.62 causal-last 1.57 bidirectional-last 1.53", look, " ")
                for (i = 1; i < n; i += 2) {
                    t = look[i]
                    printf "| %s | %s | %s |\n", t, look[i + 1], t in count ? sprintf("%.4f", sum[t] / count[t]) : "-"
                }
                for (i = 1; i < n; i += 2) for (j = 1; j < i; j += 2) if (pair(look[i], look[j])) {
                    pairs++
                    agree += (look[i + 1] < look[j + 1]) == (difference < 0)
                }
                printf "\nOf %d pairs with a seed in common, %d are in the same order here%s. ", pairs, agree, pairs == agree ? "" : ": the two do not agree"
                printf "Leak of bidirectional-last: 0.11 there, %s here.\n",
                    "bidirectional-last" in leak ? sprintf("%.4f", leak["bidirectional-last"]) : "not measured"
            }
        }
    ' "$top/$set/results.tsv" | sed "s/source\`s/source's/"
    printf '\n![losses and MaxVio](%s/loss.svg)\n' "$set"
    for plot in "$top/$set"/load-*.svg; do
        [[ ! -e $plot ]] || printf '\n![load of the experts, %s](%s)\n' "$(basename "$plot" .svg)" "$set/$(basename "$plot")"
    done
done
