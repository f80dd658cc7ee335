# Client in shell: has a text reversed, and waits for the result.
# sh client.sh HOST PORT TEXT
gearman -h "$1" -p "$2" -f reverse "$3" && echo
