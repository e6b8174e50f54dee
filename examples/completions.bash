# What bash completes for mixtral's programs. This file is installed under the name of each program, for
# which bash reads it; the words come from the program itself, so that they are those it knows.

_mixtral_completions() {
  # $1 is the program as typed, $2 the word under the cursor.
  local program=${1/#\~\//$HOME/} line kind=
  COMPREPLY=()
  while IFS= read -r line; do
    if [ -z "$kind" ]; then kind=$line; else COMPREPLY+=("$line"); fi
  done < <("$program" --completions "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  if [ "$kind" = files ]; then
    # With nothing in COMPREPLY, readline takes paths, if it may; bash before 4 has no way to say so.
    if compopt -o default 2>/dev/null; then return; fi
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$2")
  fi
}

complete -F _mixtral_completions "${BASH_SOURCE[0]##*/}"
