#!/bin/sh
# Refuse passwords that protect nothing: `guard NAME...` looks at the variables of these names and shows none of them.
set -eu

bad=0
refuse() {
    echo "error: $1; set it in docker/.env to 12 or more letters, digits and . _ ~ - of your own" >&2
    bad=2
}

for name in "$@"; do
    eval "value=\${$name-}"
    case $value in
        "") refuse "$name is not set" ;;
        *change-me*) refuse "$name is still the placeholder of .env.example" ;;
        # They go into addresses, JSON and headers, where other characters would have to be quoted.
        *[!A-Za-z0-9._~-]*) refuse "$name has characters other than letters, digits and . _ ~ -" ;;
        *) [ "${#value}" -ge 12 ] || refuse "$name is shorter than 12 characters" ;;
    esac
done
exit "$bad"
